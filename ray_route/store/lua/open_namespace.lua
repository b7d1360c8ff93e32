-- Fixes layout, shard count and options at a namespace's first use, and returns what holds. Leaves
-- another layout alone, and writes nothing where all is there: it works on a full server then.
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 options as JSON
-- Returns {layout, shards, options}
local function fix(field, value)
  if redis.call('HEXISTS', KEYS[1], field) == 0 then redis.call('HSET', KEYS[1], field, value) end
end
fix('layout', ARGV[1])
local layout = redis.call('HGET', KEYS[1], 'layout')
if layout ~= ARGV[1] then return {layout} end
fix('shards', ARGV[2])
fix('options', ARGV[3])
return redis.call('HMGET', KEYS[1], 'layout', 'shards', 'options')
