-- Writes back what the namespace runs with, over what a newcomer may have written meanwhile, and
-- opens it for a recovery: it is not sealed until that is through.
-- Preludes: _fence.lua, _meta.lua
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 options as JSON; 4 incarnation of the calling router;
--       5 token of the recovery
-- Returns 'ok' or 'deposed': a younger router decides
if is_deposed(KEYS[1], ARGV[4]) then return 'deposed' end
clear_foreign(KEYS[1])
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], 'layout', ARGV[1], 'shards', ARGV[2], 'options', ARGV[3],
  'replay', ARGV[5])
redis.call('HDEL', KEYS[1], 'sealed')
if number(redis.call('HGET', KEYS[1], 'router'), 0) < tonumber(ARGV[4]) then redis.call('HSET', KEYS[1], 'router', ARGV[4]) end
return 'ok'
