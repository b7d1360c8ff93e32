-- Fixes layout and shard count at a namespace's first use, and returns what holds.
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 a random id for the namespace
-- Returns {layout, shards, id}
redis.call('HSETNX', KEYS[1], 'layout', ARGV[1])
redis.call('HSETNX', KEYS[1], 'shards', ARGV[2])
redis.call('HSETNX', KEYS[1], 'id', ARGV[3])
return redis.call('HMGET', KEYS[1], 'layout', 'shards', 'id')
