-- Lengthens the life of links in use: of each uid whose epoch is still the expected one.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'used', or 'ending': they are to go, and their owner will see to it; 5.. one
--       expected epoch per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if lengthened}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
for i = 2, #KEYS do
  local held = read(KEYS[i])
  local is_it = held and held.epoch == ARGV[i + 3]
  report(held, is_it and refresh(KEYS[i], held, ARGV[3], ARGV[4] == 'ending'))
end
return finish()
