-- Fixes layout, shard count and options at a namespace's first use, and returns what holds.
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 a random id for the namespace; 4 options as JSON
-- Returns {layout, shards, id, options}
redis.call('HSETNX', KEYS[1], 'layout', ARGV[1])
redis.call('HSETNX', KEYS[1], 'shards', ARGV[2])
redis.call('HSETNX', KEYS[1], 'id', ARGV[3])
redis.call('HSETNX', KEYS[1], 'options', ARGV[4])
return redis.call('HMGET', KEYS[1], 'layout', 'shards', 'id', 'options')
