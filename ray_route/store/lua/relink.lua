-- Gives each uid to another owner if its epoch is still the expected one, or if it has no link.
-- Keeps the link's kind, and clears a scheduled removal; an absent link becomes a temporary one.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; then per uid: expected epoch, "pod:incarnation"
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
for i = 2, #KEYS do
  local expected, owner = ARGV[2 * i], ARGV[2 * i + 1]
  local held = read(KEYS[i])
  if held and held.epoch ~= expected then
    report(held, false)
  else
    report(assign(KEYS[i], held, owner, held and is_persistent(held), ARGV[3]), true)
  end
end
return finish()
