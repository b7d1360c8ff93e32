-- Claims a pod index for a process and gives it a new incarnation. Refused while the life of another
-- process has neither resigned nor been declared gone: time alone is no proof, since the server's
-- clock may step. Refused while the namespace is not sealed: then Redis has lost the pod tables, and
-- another may live unseen.
-- Prelude: _pods.lua
-- KEYS  1 pod table; 2 the namespace's set of services; 3 meta
-- ARGV  1 pod; 2 process; 3 service; 4 node; 5 actor; 6 routing state
-- Returns {'ok', incarnation, sequence number of the record, the newest router's incarnation}, or
-- {'held', ms} or {'unsealed', ms}: how long to wait before another attempt
if try('HEXISTS', KEYS[3], 'sealed') ~= 1 then return {'unsealed', '50'} end
local process, life, incarnation = get('process'), get('life'), get('incarnation')
local is_there = process or life or incarnation
if is_there and process ~= ARGV[2] and not ENDED[life] then return {'held', '250'} end
local now = now_us()
incarnation = text(math.max(number(incarnation, 0) + 1, now))
local seq = put({incarnation = incarnation, process = ARGV[2], heartbeat = text(now),
  node = ARGV[4], actor = ARGV[5], state = ARGV[6], life = 'alive', load = '0', lapsed = '0'})
note_service(KEYS[2], ARGV[3])
return {'ok', incarnation, seq, text(number(try('HGET', KEYS[3], 'router'), 0))}
