-- Removes each uid's link, whoever holds it, now or after a delay.
-- Preludes: _links.lua, _removal.lua
-- KEYS  see _links.lua
-- ARGV  3 after_ms
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if there was one}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
for i = 2, #KEYS do
  local held = read(KEYS[i])
  if held and not held.is_damaged then
    report(remove(KEYS[i], held, tonumber(ARGV[3])), true)
  else
    report(held, false)
  end
end
return finish()
