-- Prelude of every script on the pod table of one service. A damaged attribute counts as one that
-- Redis has lost.
-- Prelude: _numbers.lua
-- KEYS  1 the service's pod table, a hash of "<pod>:<attribute>"
-- ARGV  1 pod index
-- Numbers become text by %.0f alone (see _links.lua).
local pod = ARGV[1]
local STATES = {READY = true, DENY_NEW = true, SHUTDOWN = true}
local LIVES = {alive = true, gone = true, resigned = true}
local ENDED = {gone = true, resigned = true}

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
  local seq = text(math.max(number(get('seq'), 0), number(least, 0)) + 1)
  attributes.seq = seq
  local flat = {}
  for name, value in pairs(attributes) do
    flat[#flat + 1] = pod .. ':' .. name
    flat[#flat + 1] = value
  end
  redis.call('HSET', KEYS[1], unpack(flat))
  return seq
end

-- True if every attribute of the record can be read.
local function is_whole()
  local of = redis.call('HMGET', KEYS[1], pod .. ':process', pod .. ':node', pod .. ':actor',
    pod .. ':incarnation', pod .. ':heartbeat', pod .. ':life', pod .. ':state', pod .. ':load')
  local load = tonumber(of[8] or '')
  return of[1] and of[2] and of[3] and is_number(of[4]) and is_number(of[5]) and LIVES[of[6]]
    and STATES[of[7]] and load and load >= 0 and load < math.huge
end

-- Notes that the namespace has a service; a set of services that is of another type is made anew.
local function note_service(key, service)
  local _, is_foreign = try('SADD', key, service)
  if is_foreign then
    redis.call('DEL', key)
    redis.call('SADD', key, service)
  end
end
