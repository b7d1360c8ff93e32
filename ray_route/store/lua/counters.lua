-- Tells counters of shards, and the time of the server that holds them.
-- KEYS  counters, "counter:router", of one server
-- Returns {microseconds since 1970 as text, then per key: its value, or nil for none, or one of
-- another type}
local t = redis.call('TIME')
local reply = {string.format('%.0f', t[1] * 1000000 + t[2])}
local at_once = 1000  -- no more values fit on Lua's stack than a few thousand
for first = 1, #KEYS, at_once do
  local last = math.min(first + at_once - 1, #KEYS)
  for i, value in ipairs(redis.call('MGET', unpack(KEYS, first, last))) do
    reply[first + i] = value
  end
end
return reply
