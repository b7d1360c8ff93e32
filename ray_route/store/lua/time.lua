-- Tells the time of the server that holds a key.
-- KEYS  1 any key of that server
-- Returns microseconds since 1970, as text
local t = redis.call('TIME')
return string.format('%.0f', t[1] * 1000000 + t[2])
