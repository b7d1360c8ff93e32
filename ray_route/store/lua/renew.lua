-- Renews a pod's lease and reports its load. A record that Redis has lost, that is damaged, or an
-- older one than the caller's claim, is written back whole: absence is never death.
-- Prelude: _pods.lua
-- KEYS  1 pod table; 2 the namespace's set of services; 3 meta
-- ARGV  1 pod; 2 incarnation; 3 load; 4 service; 5 process; 6 node; 7 actor; 8 routing state;
--       9 the sequence number that the caller was told last; 10 '1' if its lease has lapsed
-- Returns {'ok', sequence number, the newest router's incarnation, '1' if Redis had lost something
-- of the record}; {'gone'} if this life has ended; {'superseded'} if another has come
local incarnation = get('incarnation')
local is_same = incarnation == ARGV[2]
if number(incarnation, -1) > tonumber(ARGV[2]) then return {'superseded'} end
if is_same and ENDED[get('life')] then return {'gone'} end
local router = text(number(try('HGET', KEYS[3], 'router'), 0))
if not is_same or not is_whole() or get('process') ~= ARGV[5] then
  local state = is_same and get('state')
  local seq = put({incarnation = ARGV[2], process = ARGV[5], heartbeat = text(now_us()),
    node = ARGV[6], actor = ARGV[7], state = STATES[state] and state or ARGV[8], life = 'alive',
    load = ARGV[3], lapsed = ARGV[10]}, ARGV[9])
  note_service(KEYS[2], ARGV[4])
  return {'ok', seq, router, '1'}
end
local is_behind = number(get('seq'), 0) < tonumber(ARGV[9])
local changes = {heartbeat = text(now_us()), load = ARGV[3]}
if ARGV[10] == '1' or get('lapsed') == '1' then changes.lapsed = ARGV[10] end
local seq = put(changes, ARGV[9])
note_service(KEYS[2], ARGV[4])
return {'ok', seq, router, is_behind and '1' or '0'}
