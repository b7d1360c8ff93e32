-- Fixes layout, shard count and options at a namespace's first use, and returns what holds. Leaves
-- another layout alone.
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 options as JSON
-- Returns {layout, shards, options}
redis.call('HSETNX', KEYS[1], 'layout', ARGV[1])
local layout = redis.call('HGET', KEYS[1], 'layout')
if layout ~= ARGV[1] then return {layout} end
redis.call('HSETNX', KEYS[1], 'shards', ARGV[2])
redis.call('HSETNX', KEYS[1], 'options', ARGV[3])
return redis.call('HMGET', KEYS[1], 'layout', 'shards', 'options')
