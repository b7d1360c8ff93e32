-- Writes back what a router knows of a pod and Redis may have lost: its record, that its life has
-- ended, or its routing state. Whatever a younger incarnation has written stays.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 the namespace's set of services; 3 meta
-- ARGV  1 pod; 2 incarnation; 3 life; 4 routing state; 5 load; 6 heartbeat; 7 service; 8 process;
--       9 node; 10 actor; 11 the sequence number that the router knows;
--       12 incarnation of the calling router
-- Returns 'written'; 'known' if nothing was lost; 'deposed': a younger router decides
if is_deposed(KEYS[3], ARGV[12]) then return 'deposed' end
local incarnation = get('incarnation')
if not incarnation or tonumber(incarnation) < tonumber(ARGV[2]) then
  put({incarnation = ARGV[2], life = ARGV[3], state = ARGV[4], load = ARGV[5],
    heartbeat = ARGV[6], process = ARGV[8], node = ARGV[9], actor = ARGV[10]}, ARGV[11])
  redis.call('SADD', KEYS[2], ARGV[7])
  return 'written'
end
if incarnation ~= ARGV[2] then return 'known' end
local life = get('life')
if life ~= 'alive' then return 'known' end
local state = get('state')
if ARGV[3] == 'alive' and (state == ARGV[4] or state == 'SHUTDOWN') then return 'known' end
put({life = ARGV[3], state = ARGV[4]}, ARGV[11])
return 'written'
