-- Links each uid to the given owner, whoever held it, and clears a scheduled removal.
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary' or 'persistent'; 5.. one "pod:incarnation" per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
for i = 2, #KEYS do
  local held = read(KEYS[i])
  report(assign(KEYS[i], held, ARGV[i + 3], ARGV[4] == 'persistent', ARGV[3]), true)
end
return finish()
