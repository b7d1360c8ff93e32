-- Claims a pod index for a process and gives it a new incarnation. Refused while the lease of
-- another process runs, unless that one resigned or was declared gone; and while the namespace is
-- not sealed: then Redis has lost the pod tables, and the lease of another may run unseen.
-- Prelude: _pods.lua
-- KEYS  1 pod table; 2 the namespace's set of services; 3 meta
-- ARGV  1 pod; 2 process; 3 lease_ms; 4 service; 5 node; 6 actor; 7 routing state
-- Returns {'ok', incarnation, sequence number of the record, the newest router's incarnation},
-- {'held', ms until that lease ends} or {'unsealed', '50'}
if redis.call('HEXISTS', KEYS[3], 'sealed') == 0 then return {'unsealed', '50'} end
local now, process = now_us(), get('process')
local previous = tonumber(get('incarnation') or '0')
if process and process ~= ARGV[2] and get('life') == 'alive' then
  local left = tonumber(get('heartbeat')) + tonumber(ARGV[3]) * 1000 - now
  if left > 0 then return {'held', text(math.ceil(left / 1000))} end
end
local incarnation = text(math.max(previous + 1, now))
local seq = put({incarnation = incarnation, process = ARGV[2], heartbeat = text(now), node = ARGV[5],
  actor = ARGV[6], state = ARGV[7], life = 'alive', load = '0', lapsed = '0'})
redis.call('SADD', KEYS[2], ARGV[4])
return {'ok', incarnation, seq, redis.call('HGET', KEYS[3], 'router') or '0'}
