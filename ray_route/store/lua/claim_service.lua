-- Gives a service's controller its incarnation, higher than any before it, and tells what was wanted.
-- Prelude: _numbers.lua
-- KEYS  1 what is wanted of the service, a hash
-- ARGV  1 an incarnation that the new one must exceed (0: none known)
-- Returns {incarnation, {field, value, …}}: the fields as they were
local previous, is_foreign = try('HGET', KEYS[1], 'controller')
if is_foreign then redis.call('DEL', KEYS[1]) end
local held = redis.call('HGETALL', KEYS[1])
local t = redis.call('TIME')
local least = math.max(number(previous, 0), number(ARGV[1], 0)) + 1
local incarnation = string.format('%.0f', math.max(least, t[1] * 1000000 + t[2]))
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], 'controller', incarnation)
return {incarnation, held}
