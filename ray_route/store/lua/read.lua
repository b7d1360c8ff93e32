-- Reads links with what is left of their lives, and the counter that vouches for them. Refused by a
-- server that is no primary any more: PERSIST changes nothing here, but it is a write.
-- KEYS  1 the shard's counter, "counter:router"; 2.. one link per uid
-- ARGV  1 highest counter or epoch that the caller has seen for this shard
-- Returns {'ok', counter, then per uid: value, ttl_ms or nil, 0}, or {'lost', counter}: Redis has
-- lost writes, and a missing link means nothing.
redis.call('PERSIST', KEYS[1])
local counter = string.match(redis.call('GET', KEYS[1]) or '0:', '^%d+')
if tonumber(counter) < tonumber(ARGV[1]) then return {'lost', counter} end
local reply = {'ok', counter}
for i = 2, #KEYS do
  local value = redis.call('GET', KEYS[i])
  local ttl = value and redis.call('PTTL', KEYS[i])
  reply[#reply + 1] = value
  reply[#reply + 1] = ttl and ttl >= 0 and ttl
  reply[#reply + 1] = 0
end
return reply
