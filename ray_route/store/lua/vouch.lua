-- Vouches for a life whose lease had lapsed: writes that it serves again, if the very renewal that
-- its pod was told of is there. The end of a life that was judged silent before fails from now on.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 meta
-- ARGV  1 pod; 2 incarnation; 3 sequence number of the renewal; 4 incarnation of the calling router
-- Returns 'ok'; 'deposed': a younger router decides; 'ended'; 'superseded': another life has come;
-- 'lost': that renewal is not there, or the tables are being written back
if is_deposed(KEYS[2], ARGV[4]) then return 'deposed' end
if try('HEXISTS', KEYS[2], 'sealed') ~= 1 then return 'lost' end
local incarnation = get('incarnation')
if number(incarnation, -1) < tonumber(ARGV[2]) then return 'lost' end
if incarnation ~= ARGV[2] then return 'superseded' end
if ENDED[get('life')] or get('state') == 'SHUTDOWN' then return 'ended' end
if number(get('seq'), 0) < tonumber(ARGV[3]) then return 'lost' end
put({lapsed = '0'})
return 'ok'
