-- Removes each uid's link if its owner is the one that was meant, now or after a delay.
-- Preludes: _links.lua, _removal.lua
-- KEYS  see _links.lua
-- ARGV  3 after_ms; 4 'wanted'; or 'unused': a persistent one stays; or 'due': one whose removal is
--       not scheduled stays; 5.. per uid what was meant: "pod", "pod:incarnation" or "pod:incarnation:epoch"
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if it was the one}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
local function is_meant(link, meant)
  local whole = link.owner .. ':' .. link.epoch .. ':'
  return string.sub(whole, 1, #meant + 1) == meant .. ':'
end
local function stays(link)
  return (ARGV[4] == 'unused' and is_persistent(link)) or (ARGV[4] == 'due' and link.mark == '')
end
for i = 2, #KEYS do
  local held = read(KEYS[i])
  if held and not held.is_damaged and is_meant(held, ARGV[i + 3]) and not stays(held) then
    report(remove(KEYS[i], held, tonumber(ARGV[3])), true)
  else
    report(held, false)
  end
end
return finish()
