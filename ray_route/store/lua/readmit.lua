-- Writes back links that have run out while their owner could not be reached, under their old epochs,
-- where the uid has none now. The caller knows that nobody else has had them since.
-- Prelude: _links.lua
-- KEYS  see _links.lua
-- ARGV  3 ttl_ms; 4.. one "pod:incarnation:epoch" per uid
-- Returns {status, counter, then per uid: value, ttl_ms or nil, 1 if written}
local status = begin()
if status ~= 'ok' then return {status, text(counter)} end
for i = 2, #KEYS do
  local held = read(KEYS[i])
  if held then
    report(held, false)
  else
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[3])
    advance()
    report({value = ARGV[i + 2], ttl = tonumber(ARGV[3])}, true)
  end
end
allow_full()
return finish()
