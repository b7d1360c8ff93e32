-- Makes the calling router the shard's writer: older ones can change nothing here any more.
-- Prelude: _links.lua
-- KEYS  1 the shard's counter (see _links.lua)
-- Returns {status, counter}
local status = begin('at_any_time')
if status ~= 'ok' then return {status, text(counter)} end
allow_full()
advance()
return finish()
