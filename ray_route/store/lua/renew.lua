-- Renews a pod's lease and reports its load. A record that Redis has lost, or an older one than
-- the caller's claim, which it has lost then, is written back whole: absence is never death.
-- Prelude: _pods.lua
-- KEYS  1 pod table; 2 the namespace's set of services
-- ARGV  1 pod; 2 incarnation; 3 load; 4 service; 5 process; 6 node; 7 actor; 8 routing state
-- Returns 'ok'; 'gone' if this incarnation's life has ended; 'superseded' if another has come
local incarnation = get('incarnation')
if not incarnation or tonumber(incarnation) < tonumber(ARGV[2]) then
  put({incarnation = ARGV[2], process = ARGV[5], heartbeat = text(now_us()), node = ARGV[6],
    actor = ARGV[7], state = ARGV[8], life = 'alive', load = ARGV[3]})
  redis.call('SADD', KEYS[2], ARGV[4])
  return 'ok'
end
if incarnation ~= ARGV[2] then return 'superseded' end
if get('life') ~= 'alive' then return 'gone' end
put({heartbeat = text(now_us()), load = ARGV[3]})
return 'ok'
