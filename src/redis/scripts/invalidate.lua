-- Drops a key's value under each schema, and voids the loads under way.
--
-- KEYS  a value and its control record, for each schema
-- ARGV  1 channel, 2 lifetime of the control records in ms, 3 the rest of the event
-- Returns the token up to which everything is void.

-- A token, if it is one: beyond 2^53 numbers here are not exact, and no clock is.
local function token_of(text)
  local number = tonumber(text)
  if number and number < 2 ^ 53 then return number end
end

local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local newest = 0
for n = 1, #KEYS, 2 do
  local value, control = KEYS[n], KEYS[n + 1]
  -- First: it works even where no memory is left for the rest.
  redis.call('UNLINK', value)
  local token = math.max(us, (token_of(redis.call('HGET', control, 't')) or 0) + 1)
  local text = string.format('%.0f', token)
  redis.call('HSET', control, 't', text, 'i', text)
  redis.call('HDEL', control, 'o', 'x', 'w', 'e', 'm', 'u')
  redis.call('PEXPIRE', control, ARGV[2])
  newest = math.max(newest, token)
end
local text = string.format('%.0f', newest)
redis.call('PUBLISH', ARGV[1], 'i' .. string.char(#text) .. text .. ARGV[3])
return newest
