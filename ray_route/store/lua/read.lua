-- Reads links with what is left of their lives, and the counter that vouches for them. Refused by a
-- server that is no primary any more: PERSIST changes nothing here, but it is a write.
-- Prelude: _numbers.lua
-- KEYS  1 the shard's counter, "counter:router"; 2.. one link per uid
-- ARGV  1 highest counter or epoch that the caller has seen for this shard; 2 the latest time, in
--       microseconds, that the server's clock may show (none: any; a router knows)
-- Returns {'ok', counter, then per uid: value, ttl_ms or nil, 0}; {'lost', counter}: Redis has
-- lost writes, or the counter is damaged, and a missing link means nothing; {'stepped', counter}:
-- its clock has stepped, and a missing link may have run out before its leases. The value of a key
-- of another type begins with a '?'.
redis.call('PERSIST', KEYS[1])
local stored, is_foreign = try('GET', KEYS[1])
local counter, writer = string.match(stored or (is_foreign and '?' or '0:0'), '^(%d+):(%d+)$')
if not (is_number(counter) and is_number(writer)) then return {'lost', '0'} end
if tonumber(counter) < tonumber(ARGV[1]) then return {'lost', counter} end
if ARGV[2] then
  local t = redis.call('TIME')
  if t[1] * 1000000 + t[2] > tonumber(ARGV[2]) then return {'stepped', counter} end
end
local reply = {'ok', counter}
-- Of many, one MGET takes a fifth less than a GET for each; it says the same of a missing key and of
-- one of another type.
local values = #KEYS > 2 and redis.call('MGET', unpack(KEYS, 2)) or {}
for i = 1, #KEYS - 1 do
  local key, value, is_other = KEYS[i + 1], values[i], false
  if not value then value, is_other = try('GET', key) end
  if is_other then value = '?another type' end
  local ttl = value and redis.call('PTTL', key)
  reply[3 * i] = value
  reply[3 * i + 1] = ttl and ttl >= 0 and ttl
  reply[3 * i + 2] = 0
end
return reply
