-- Gives a starting router its incarnation, higher than any before it.
-- KEYS  1 meta, a hash
-- ARGV  1 an incarnation that the new one must exceed (0: none known)
-- Returns the incarnation
local t = redis.call('TIME')
local previous = math.max(tonumber(redis.call('HGET', KEYS[1], 'router') or '0'), tonumber(ARGV[1]))
local incarnation = string.format('%.0f', math.max(previous + 1, t[1] * 1000000 + t[2]))
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], 'router', incarnation)
return incarnation
