-- Links each uid to the given owner, whoever held it, and clears a scheduled removal; but only if
-- the link is still the one that the caller has dealt with, or has ended.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary', 'persistent', or 'kept': of the kind that it has; then per uid:
--       "pod:incarnation", the epoch that the caller has dealt with (empty: that it has no link;
--       '*': whatever it has)
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
for i = 2, #KEYS do
  local owner, expected = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local held = read(KEYS[i])
  if held and held.is_damaged then
    report(held, false)
  elseif held and expected ~= '*' and expected ~= held.epoch then
    report(held, false)
  else
    if held then allow_full() end
    local persistent = ARGV[4] == 'persistent' or (ARGV[4] == 'kept' and held and is_persistent(held))
    report(assign(KEYS[i], held, owner, persistent, ARGV[3]), true)
  end
end
return finish()
