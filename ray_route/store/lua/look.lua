-- Notes that a router looks, and says when one did last. A server that refuses pods' renewals
-- refuses this, too: silence counts only while it succeeds.
-- Prelude: _fence.lua
-- KEYS  1 meta, a hash
-- ARGV  1 incarnation of the calling router; 2 '1' if this look is to be found by the next: not while
--       pods are still to be heard after an outage
-- Returns {'ok', microseconds since the last look (-1: there was none)}, or {'deposed'}: a younger
-- router decides
if is_deposed(KEYS[1], ARGV[1]) then return {'deposed'} end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local last = number(redis.call('HGET', KEYS[1], 'looked'), -1)
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
redis.call('HSET', KEYS[1], ARGV[2] == '1' and 'looked' or 'looking', string.format('%.0f', now))
return {'ok', string.format('%.0f', last < 0 and -1 or now - last)}
