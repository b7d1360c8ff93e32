-- Prelude of every script on the pod table of one service.
-- KEYS  1 the service's pod table, a hash of "<pod>:<attribute>"
-- ARGV  1 pod index
-- Numbers become text by %.0f alone (see _links.lua).
local pod = ARGV[1]

local function text(number) return string.format('%.0f', number) end

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function get(attribute) return redis.call('HGET', KEYS[1], pod .. ':' .. attribute) end

local function put(attributes)
  local flat = {}
  for name, value in pairs(attributes) do
    flat[#flat + 1] = pod .. ':' .. name
    flat[#flat + 1] = value
  end
  redis.call('HSET', KEYS[1], unpack(flat))
end
