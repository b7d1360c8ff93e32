-- Ends an incarnation for ever: a router declares it gone, or the pod itself resigns. A renewal
-- of it fails from now on.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 meta
-- ARGV  1 pod; 2 incarnation; 3 'gone' or 'resigned'; 4 the sequence number that was seen
--       standing still (empty: any, the process is known to have ended);
--       5 incarnation of the calling router (empty: the pod itself)
-- Returns 'ok' (also if it had ended before); 'superseded' if another has come; 'renewed' if its
-- record moved on; 'absent' if there is no record that can be read, which proves nothing; 'deposed': a
-- younger router decides
if ARGV[5] ~= '' and is_deposed(KEYS[2], ARGV[5]) then return 'deposed' end
local incarnation = get('incarnation')
if not is_number(incarnation) then return 'absent' end
if incarnation ~= ARGV[2] then return 'superseded' end
if ENDED[get('life')] then return 'ok' end
if ARGV[4] ~= '' and (get('seq') or '0') ~= ARGV[4] then return 'renewed' end
put({life = ARGV[3]})
return 'ok'
