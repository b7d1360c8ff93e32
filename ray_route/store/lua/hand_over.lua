-- Gives each uid, with its state, to another owner if its epoch is exactly the expected one: a link that
-- has ended may have been another's since, whose state is newer. Clears a scheduled removal.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary', 'persistent', or 'kept': of the kind that it has; then per uid:
--       expected epoch, "pod:incarnation"
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
for i = 2, #KEYS do
  local expected, owner = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local held = read(KEYS[i])
  if held and held.epoch == expected then
    local persistent = ARGV[4] == 'persistent' or (ARGV[4] == 'kept' and is_persistent(held))
    report(assign(KEYS[i], held, owner, persistent, ARGV[3]), true)
  else
    report(held, false)
  end
end
return finish()
