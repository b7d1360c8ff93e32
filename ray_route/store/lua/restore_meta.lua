-- Writes back what the namespace runs with, over what a newcomer may have written meanwhile, and
-- opens it for a recovery: it is not sealed until that is through.
-- Prelude: _fence.lua
-- KEYS  1 meta, a hash
-- ARGV  1 layout version; 2 shards; 3 options as JSON; 4 incarnation of the calling router;
--       5 token of the recovery
-- Returns 'ok' or 'deposed': a younger router decides
if is_deposed(KEYS[1], ARGV[4]) then return 'deposed' end
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], 'layout', ARGV[1], 'shards', ARGV[2], 'options', ARGV[3],
  'replay', ARGV[5])
redis.call('HDEL', KEYS[1], 'sealed')
local router = tonumber(redis.call('HGET', KEYS[1], 'router') or '0')
if router < tonumber(ARGV[4]) then redis.call('HSET', KEYS[1], 'router', ARGV[4]) end
return 'ok'
