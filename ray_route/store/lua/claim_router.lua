-- Gives a starting router its incarnation, higher than any before it. A meta of another type goes:
-- the router knows what belongs there.
-- Preludes: _numbers.lua, _meta.lua
-- KEYS  1 meta, a hash
-- ARGV  1 an incarnation that the new one must exceed (0: none known)
-- Returns the incarnation
local t = redis.call('TIME')
clear_foreign(KEYS[1])
local previous = math.max(number(redis.call('HGET', KEYS[1], 'router'), 0), number(ARGV[1], 0))
local incarnation = string.format('%.0f', math.max(previous + 1, t[1] * 1000000 + t[2]))
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], 'router', incarnation)
return incarnation
