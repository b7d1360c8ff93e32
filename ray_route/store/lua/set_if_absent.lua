-- Links each uid that has no link. A live link wins: a temporary one gets its TTL refreshed and is
-- never upgraded, a persistent one is never shortened. A full server takes no new link, but what is
-- there serves on.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary' or 'persistent'; 5.. one "pod:incarnation" per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}; no value: it has no
-- link, and the server is too full for one
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
local held, links, is_full = {}, {}, false
-- The new ones first: a full server refuses a script's first write alone.
for i = 2, #KEYS do
  held[i] = read(KEYS[i])
  if not held[i] and not is_full then
    local done, link = pcall(assign, KEYS[i], nil, ARGV[i + 3], ARGV[4] == 'persistent', ARGV[3])
    if done then links[i] = link else is_full = true end
  end
end
allow_full()
for i = 2, #KEYS do
  if held[i] then
    if not held[i].is_damaged then refresh(KEYS[i], held[i], ARGV[3]) end
    report(held[i], false)
  else
    report(links[i], links[i] ~= nil)
  end
end
return finish()
