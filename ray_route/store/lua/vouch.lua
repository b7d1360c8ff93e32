-- Vouches for a life whose lease had lapsed: writes that it serves again, if the very renewal that
-- its pod was told of is there. The end of a life that was judged silent before fails from now on.
-- Preludes: _pods.lua, _fence.lua
-- KEYS  1 pod table; 2 meta
-- ARGV  1 pod; 2 incarnation; 3 sequence number of the renewal; 4 incarnation of the calling router
-- Returns 'ok'; 'deposed': a younger router decides; 'ended'; 'superseded': another life has come;
-- 'lost': that renewal is not there, or the tables are being written back
if is_deposed(KEYS[2], ARGV[4]) then return 'deposed' end
if redis.call('HEXISTS', KEYS[2], 'sealed') == 0 then return 'lost' end
local incarnation = get('incarnation')
if not incarnation or tonumber(incarnation) < tonumber(ARGV[2]) then return 'lost' end
if incarnation ~= ARGV[2] then return 'superseded' end
if get('life') ~= 'alive' or get('state') == 'SHUTDOWN' then return 'ended' end
if tonumber(get('seq') or '0') < tonumber(ARGV[3]) then return 'lost' end
put({lapsed = '0'})
return 'ok'
