-- How damaged values are told from good ones, so that no script stumbles over one.
-- Epochs, incarnations and counters stay below 2^53: what is greater can't be counted up exactly.
local MOST = '9007199254740992'

local function is_number(text)
  return type(text) == 'string' and string.match(text, '^%d+$') ~= nil
    and (#text < #MOST or (#text == #MOST and text <= MOST))
end

-- The number that a text holds; `other` if it is missing or holds none.
local function number(text, other)
  if is_number(text) then return tonumber(text) end
  return other
end

-- What a command on one key returns; the second is true if that key is of another type.
local function try(...)
  local reply = redis.pcall(...)
  if type(reply) ~= 'table' or not reply.err then return reply, false end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply.err, 0) end
  return false, true
end
