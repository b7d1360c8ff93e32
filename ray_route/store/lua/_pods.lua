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

-- Writes attributes, and counts the record's sequence number up: readers order records by it, since
-- the server's clock may step. 'least' is a number that it must exceed (nil: none known).
-- A full server refuses a script's first write, but not one after a write that needs no memory:
-- PERSIST changes nothing here. So it comes first, and who is there stays known.
local function put(attributes, least)
  redis.call('PERSIST', KEYS[1])
  local seq = text(math.max(tonumber(get('seq') or '0'), tonumber(least or '0')) + 1)
  attributes.seq = seq
  local flat = {}
  for name, value in pairs(attributes) do
    flat[#flat + 1] = pod .. ':' .. name
    flat[#flat + 1] = value
  end
  redis.call('HSET', KEYS[1], unpack(flat))
  return seq
end
