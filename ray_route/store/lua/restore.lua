-- Writes back links that Redis has lost, and takes back removals that it has forgotten. Never lowers
-- an epoch, never shortens a life. Until the call that says 'last' the counter holds the token of the
-- recovery, which is lower than any counter: every other writer stays refused meanwhile, and a second
-- loss in its midst takes the token with it. What is written back replaces a damaged link, and a
-- damaged counter.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 token; 4 'first' or 'next'; 5 'more' or 'last'; then per uid: value, ttl_ms (empty:
--       persistent; 0: removed)
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}; 'lost': begin anew
if begin('at_any_time') == 'superseded' then return {'superseded', text(counter)} end
allow_full()
if ARGV[4] == 'next' and counter ~= tonumber(ARGV[3]) then return {'lost', text(counter)} end
local function is_behind(held, epoch, mark, ttl)
  if not held then return ttl ~= '0' end
  if tonumber(held.epoch) ~= epoch then return tonumber(held.epoch) < epoch end
  if ttl == '0' or (mark ~= '' and held.mark == '') then return true end
  return held.mark == '' and held.ttl and (ttl == '' or held.ttl < tonumber(ttl))
end
local highest = seen
for i = 2, #KEYS do
  local value, ttl = ARGV[2 * i + 2], ARGV[2 * i + 3]
  local epoch = tonumber(string.match(value, '^%d+:%d+:(%d+)'))
  local mark = string.match(value, ':([tp])$') or ''
  local replaced = string.match(value, '^%d+:%d+:%d+:(%d+)')
  highest = math.max(highest, epoch)
  local held = read(KEYS[i])
  if held and held.is_damaged then held = nil end
  local behind = is_behind(held, epoch, mark, ttl)
  if behind and ttl == '0' then
    redis.call('DEL', KEYS[i])
    held = nil
  elseif behind then
    if held and held.replaced and not replaced and tonumber(held.epoch) == epoch then
      -- Who remembers a link by its epoch alone takes nothing from it.
      value = stem(held.owner, held.epoch, held.replaced) .. (mark ~= '' and ':' .. mark or '')
    end
    if ttl == '' then redis.call('SET', KEYS[i], value)
    else redis.call('SET', KEYS[i], value, 'PX', ttl) end
    held = {value = value, ttl = tonumber(ttl)}
  end
  report(held, behind)
end
if ARGV[5] == 'more' then
  counter = tonumber(ARGV[3])
else
  seen = math.max(seen, highest)
  advance()
end
return finish()
