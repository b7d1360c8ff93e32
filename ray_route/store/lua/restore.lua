-- Writes back links that Redis has lost. Never lowers an epoch, never shortens a life. The counter
-- stays lost, and with it every other writer refused, until the call that says 'last'.
-- KEYS  see _links.lua
-- ARGV  3 'more' or 'last'; then per uid: value, ttl_ms (empty: persistent)
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
if begin() == 'superseded' then return {'superseded', text(counter)} end
local function is_behind(held, epoch, ttl)
  if not held or tonumber(held.epoch) < epoch then return true end
  return tonumber(held.epoch) == epoch and held.mark == '' and held.ttl
    and (ttl == '' or held.ttl < tonumber(ttl))
end
local highest = seen
for i = 2, #KEYS do
  local value, ttl = ARGV[2 * i], ARGV[2 * i + 1]
  local epoch = tonumber(string.match(value, '^%d+:%d+:(%d+)'))
  highest = math.max(highest, epoch)
  local held = read(KEYS[i])
  local behind = is_behind(held, epoch, ttl)
  if behind then
    if ttl == '' then redis.call('SET', KEYS[i], value)
    else redis.call('SET', KEYS[i], value, 'PX', ttl) end
    held = {value = value, ttl = tonumber(ttl)}
  end
  report(held, behind)
end
if ARGV[3] == 'more' then
  reply[2] = text(counter)
  return reply
end
seen = math.max(seen, highest)
advance()
return finish()
