-- Sets the routing state of a living incarnation.
-- Prelude: _pods.lua
-- KEYS  1 pod table
-- ARGV  1 pod; 2 incarnation; 3 routing state
-- Returns 'ok', 'gone', 'superseded' or 'absent'
local incarnation = get('incarnation')
if not incarnation then return 'absent' end
if incarnation ~= ARGV[2] then return 'superseded' end
if get('life') ~= 'alive' then return 'gone' end
put({state = ARGV[3]})
return 'ok'
