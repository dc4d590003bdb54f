-- Voids everything of one cache, or of the whole namespace.
--
-- KEYS  1 epochs
-- ARGV  1 the cache, or "" for all, 2 channel, 3 the rest of the event
-- Returns the token up to which everything is void.

-- A token, if it is one: beyond 2^53 numbers here are not exact, and no clock is.
local function token_of(text)
  local number = tonumber(text)
  if number and number < 2 ^ 53 then return number end
end

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local token = math.max(us, (token_of(redis.call('HGET', KEYS[1], ARGV[1])) or 0) + 1)
local text = string.format('%.0f', token)
if redis.call('EXISTS', KEYS[1]) == 0 then
  -- Nobody knows what was voided before this record was made, so all from before is. Who has listened since then knows.
  redis.call('HSET', KEYS[1], '', text)
end
redis.call('HSET', KEYS[1], ARGV[1], text)
redis.call('PUBLISH', ARGV[2], 'e' .. string.char(#text) .. text .. ARGV[3])
return token
