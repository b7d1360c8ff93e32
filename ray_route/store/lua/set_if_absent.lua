-- Links each uid that has no link. A live link wins: a temporary one gets its TTL refreshed and is
-- never upgraded, a persistent one is never shortened.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary' or 'persistent'; 5.. one "pod:incarnation" per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
for i = 2, #KEYS do
  local held = read(KEYS[i])
  if held then
    refresh(KEYS[i], held, ARGV[3])
    report(held, false)
  else
    report(assign(KEYS[i], nil, ARGV[i + 3], ARGV[4] == 'persistent', ARGV[3]), true)
  end
end
return finish()
