-- Writes back what a router knows of a pod and Redis may have lost: its record, that its life has
-- ended, or its routing state. Whatever a younger incarnation has written stays.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 the namespace's set of services; 3 meta
-- ARGV  1 pod; 2 incarnation; 3 life; 4 routing state; 5 load; 6 heartbeat; 7 service; 8 process;
--       9 node; 10 actor; 11 the sequence number that the router knows;
--       12 incarnation of the calling router
-- Returns 'written'; 'known' if nothing was lost; 'deposed': a younger router decides
if is_deposed(KEYS[3], ARGV[12]) then return 'deposed' end
redis.call('PERSIST', KEYS[1])  -- changes nothing: see _pods.lua
note_service(KEYS[2], ARGV[7])
local incarnation = get('incarnation')
local is_same = incarnation == ARGV[2]
if number(incarnation, -1) < tonumber(ARGV[2]) or (is_same and not is_whole()) then
  if is_same and ENDED[get('life')] then ARGV[3] = get('life') end
  if is_same and get('state') == 'SHUTDOWN' then ARGV[4] = 'SHUTDOWN' end
  put({incarnation = ARGV[2], life = ARGV[3], state = ARGV[4], load = ARGV[5],
    heartbeat = ARGV[6], process = ARGV[8], node = ARGV[9], actor = ARGV[10]}, ARGV[11])
  return 'written'
end
if not is_same then return 'known' end
local life = get('life')
if life ~= 'alive' then return 'known' end
local state = get('state')
if ARGV[3] == 'alive' and (state == ARGV[4] or state == 'SHUTDOWN') then return 'known' end
put({life = ARGV[3], state = ARGV[4]}, ARGV[11])
return 'written'
