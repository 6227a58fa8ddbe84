-- Post comments in order of arrival: for each, pace, mute and the show's status are decided and the line is
-- appended in one step.
--
-- KEYS[8] mutes     hash: public id -> ms until which the viewer may not comment
-- KEYS[9] hidden    set: seqs of hidden comments (a hidden one is not replied to)
-- KEYS[10] pace     hash: ten-second slot -> comments posted in it
-- KEYS[11] buyers   set: members who paid for something in this show
-- KEYS[12…] two for each comment:
--   recent          list of this person: ms of the last comments, oldest first
--   paused          there while this person is silenced for going too fast
-- ARGV[1] burst     comments allowed in one window (3)
-- ARGV[2] window    ms (2000)
-- ARGV[3] pause     ms of silence for the one comment too many (10000)
-- ARGV[4…] nine for each comment, 100 comments at most:
--   who             the person's id; answers are recorded by who:key
--   key             '' when the command has none
--   digest          of the command's body
--   public          the person's public id
--   kind            'staff' (no pace, no mute), 'member' or 'guest' (only where the show lets guests speak)
--   event           comment.posted as JSON
--   reply_to        seq of the comment answered, or ''
--   record          behaviour record as JSON, or ''
--   rank            in sampling when no buyer: 2 plan member, 3 registered, 4 guest; '' is never sampled
-- Returns {'ok', {answer, …}}, each '{"seq":…,"at":…}' or {'refused', …}: key_reused, not_live,
-- unauthenticated, not_found (reply_to), muted, rate_limited (both with retry_ms). Refused as a whole: unavailable.
-- All or none, each: a refused comment changes nothing but the pause it starts.
local gone = whole_guard()
if gone then return gone end
local MUTES, HIDDEN, PACE, BUYERS = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local burst, window, pause = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now_text = string.format('%.0f', NOW)
local current = status()
local posted = 0

local function post(RECENT, PAUSED, who, key, digest, public, kind, event, reply_to, record, rank)
  local again = recall(who, key, digest)
  if again then return again[1] == 'ok' and again[2] or again end

  if current == 'scheduled' or current == 'ended' then return refused('not_live') end
  if kind == 'guest' and redis.call('HGET', META, 'guest_comments') ~= '1' then
    return refused('unauthenticated')
  end

  if reply_to ~= '' then
    local entry = redis.call('XRANGE', LOG, reply_to .. '-0', reply_to .. '-0')[1]
    local found = entry and entry[2][2] ~= '' and cjson.decode(entry[2][2])
    if not found or found.type ~= 'comment.posted' or redis.call('SISMEMBER', HIDDEN, reply_to) == 1 then
      return refused('not_found')
    end
    event = string.sub(event, 1, -2) .. ',"reply_name":' .. cjson.encode(found.name) .. '}'
  end

  if kind ~= 'staff' then
    local muted = tonumber(redis.call('HGET', MUTES, public) or '0')
    if muted > NOW then return refused('muted', muted - NOW) end
    local silent = redis.call('PTTL', PAUSED)
    if silent > 0 then return refused('rate_limited', silent) end
    if redis.call('LLEN', RECENT) >= burst and NOW - tonumber(redis.call('LINDEX', RECENT, 0)) < window then
      redis.call('DEL', RECENT) -- after the pause the window begins anew
      redis.call('SET', PAUSED, '1', 'PX', pause)
      return refused('rate_limited', pause)
    end
    redis.call('RPUSH', RECENT, now_text)
    redis.call('LTRIM', RECENT, -burst, -1)
    redis.call('PEXPIRE', RECENT, window)
  end

  rank = tonumber(rank)
  if rank and redis.call('SISMEMBER', BUYERS, who) == 1 then rank = 1 end
  local seq = append(0, event, false, nil, rank)
  posted = posted + 1
  behave(record)
  local reply = '{"seq":' .. seq .. ',"at":' .. now_text .. '}'
  remember(who, key, digest, reply)
  return reply
end

local answers = {}
for i = 4, #ARGV, 9 do
  local at = 12 + (i - 4) / 9 * 2
  answers[#answers + 1] = post(KEYS[at], KEYS[at + 1], unpack(ARGV, i, i + 8))
end
if posted > 0 then redis.call('HINCRBY', PACE, string.format('%.0f', math.floor(NOW / 10000)), posted) end
return {'ok', answers}
