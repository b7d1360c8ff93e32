-- Writes what is wanted of a service, whole, so that whatever was lost of it is there again. Without
-- fields it is forgotten.
-- Prelude: _numbers.lua
-- KEYS  1 what is wanted of the service, a hash
-- ARGV  1 incarnation of the calling controller; then field, value, …
-- Returns 'ok', or 'deposed': a younger controller decides
if number(try('HGET', KEYS[1], 'controller'), 0) > tonumber(ARGV[1]) then return 'deposed' end
redis.call('DEL', KEYS[1])
if #ARGV > 1 then redis.call('HSET', KEYS[1], 'controller', unpack(ARGV)) end
return 'ok'
