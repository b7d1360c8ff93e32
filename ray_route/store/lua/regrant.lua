-- Gives each uid back to its present owner under a new epoch, if its epoch is still the expected one:
-- the owner had given it up, and serves it again as one that it has just got, with the state of the
-- epoch that this one replaces. Keeps the link's kind, and a scheduled removal.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4.. one expected epoch per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
for i = 2, #KEYS do
  local held = read(KEYS[i])
  if held and held.epoch == ARGV[i + 2] then
    local value, ttl = stem(held.owner, text(advance()), held.epoch), held.ttl
    if held.mark ~= '' then value = value .. ':' .. held.mark
    elseif ttl then ttl = tonumber(ARGV[3]) end
    if ttl then redis.call('SET', KEYS[i], value, 'PX', text(ttl))
    else redis.call('SET', KEYS[i], value) end
    report({value = value, ttl = ttl}, true)
  else
    report(held, false)
  end
end
return finish()
