-- Links each uid to the given owner, unless another pod holds it. A holder gives way if its epoch
-- is the replaceable one (the caller knows that pod to be gone), or to 'steal'. A scheduled
-- removal of the owner's own link stays scheduled.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4 'temporary' or 'persistent'; 5 'steal' or 'keep';
--       then per uid: "pod:incarnation", replaceable epoch (empty: none)
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
local function life(owner)
  local pod, incarnation = string.match(owner, '^(%d+):(%d+)$')
  return pod, tonumber(incarnation)
end
-- The same pod may take over from an earlier life of its own, never from a later one.
local function is_own(held, owner)
  local held_pod, held_life = life(held.owner)
  local pod, new_life = life(owner)
  return pod == held_pod and new_life >= held_life
end
for i = 2, #KEYS do
  local owner, replaceable = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local held = read(KEYS[i])
  if held and (held.is_damaged or (held.owner == owner and held.mark ~= '')) then
    report(held, false)
  elseif not held or ARGV[5] == 'steal' or held.epoch == replaceable
      or is_own(held, owner) then
    if held then allow_full() end
    report(assign(KEYS[i], held, owner, ARGV[4] == 'persistent', ARGV[3]), true)
  else
    report(held, false)
  end
end
return finish()
