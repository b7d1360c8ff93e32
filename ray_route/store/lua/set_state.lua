-- Sets the routing state of a living incarnation. SHUTDOWN is the end of its service: nothing takes
-- it back but another incarnation.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 meta
-- ARGV  1 pod; 2 incarnation; 3 routing state; 4 incarnation of the calling router
-- Returns 'ok', 'gone', 'superseded', 'absent', or 'deposed': a younger router decides
if is_deposed(KEYS[2], ARGV[4]) then return 'deposed' end
local incarnation = get('incarnation')
if not is_number(incarnation) then return 'absent' end
if incarnation ~= ARGV[2] then return 'superseded' end
if ENDED[get('life')] then return 'gone' end
if get('state') == 'SHUTDOWN' and ARGV[3] ~= 'SHUTDOWN' then return 'gone' end
put({state = ARGV[3]})
return 'ok'
