-- The store functions: each touches keys of one hash slot only (all keys of a call carry the same bucket tag).
-- `@` in names becomes a hash of this text, so that two releases can run side by side.

-- Rows. KEYS: rows hash, floor. ARGV: (key, version, links, body) per write; an empty body is a delete.
-- Stored: version (32), length and bytes of former links, length and bytes of links, body.
-- Answer per write: 0 stale, 1 newer with the same content, or the former links (each with its length) as text.
local function apply(keys, args)
  local floor = redis.call('GET', keys[2])
  local names, current, touched, out = {}, {}, {}, {}
  for i = 1, #args, 4 do
    if current[args[i]] == nil then
      current[args[i]] = false
      names[#names + 1] = args[i]
    end
  end
  for first = 1, #names, 1000 do
    local last = math.min(first + 999, #names)
    local found = redis.call('HMGET', keys[1], unpack(names, first, last))
    for i = first, last do current[names[i]] = found[i - first + 1] end
  end
  local changed = {}
  for i = 1, #args, 4 do
    local key, version, links, body = args[i], args[i + 1], args[i + 2], args[i + 3]
    local stored = current[key]
    local answer = ''
    local stored_version = stored and string.sub(stored, 1, 32)
    if floor and version < floor and (not stored or version > stored_version) then
      answer = 0
    elseif stored then
      if version < stored_version then
        answer = 0
      else
        local former_length = struct.unpack('>I4', stored, 33)
        local former = string.sub(stored, 37, 36 + former_length)
        if version == stored_version then
          answer = former
        else
          local links_length = struct.unpack('>I4', stored, 37 + former_length)
          local links_start = 41 + former_length
          local stored_links = string.sub(stored, links_start, links_start + links_length - 1)
          local same = not touched[key] and string.sub(stored, links_start + links_length) == body
          -- A truncate writes from another partition: what its deletes or the row's own batch left undone is kept.
          if not touched[key] and floor ~= version and floor ~= stored_version then former = '' end
          if links_length > 0 and stored_links ~= links then
            local blob = struct.pack('>I4', links_length) .. stored_links
            if not string.find(former, blob, 1, true) then former = former .. blob end
          end
          current[key] = table.concat({ version, struct.pack('>I4', #former), former, struct.pack('>I4', #links), links, body })
          changed[key] = true
          if same and former == '' then answer = 1 else answer = former end
        end
      end
      touched[key] = true
    else
      current[key] = table.concat({ version, struct.pack('>I4', 0), struct.pack('>I4', #links), links, body })
      changed[key] = true
      touched[key] = true
    end
    out[(i + 3) / 4] = answer
  end
  local pairs_out = {}
  for key in pairs(changed) do
    pairs_out[#pairs_out + 1] = key
    pairs_out[#pairs_out + 1] = current[key]
    if #pairs_out >= 2000 then
      redis.call('HSET', keys[1], unpack(pairs_out))
      pairs_out = {}
    end
  end
  if #pairs_out > 0 then redis.call('HSET', keys[1], unpack(pairs_out)) end
  return out
end

-- Wide-column rows. KEYS: rows hash, expiry index. ARGV: (field of the expiry index, key, token, version, links, body,
-- confirmed, expiry) per write; a body ends in the 16 bytes of its token. Answer per write: 0 where another token lies
-- there, else the former links.
local function cells(keys, args)
  local out = {}
  for i = 1, #args, 8 do
    local key, token, version, links, body = args[i + 1], args[i + 2], args[i + 3], args[i + 4], args[i + 5]
    local stored = redis.call('HGET', keys[1], key)
    local answer = ''
    if (stored and string.sub(stored, -16) or '') ~= token then
      answer = 0
    else
      local former = ''
      if stored then
        local former_length = struct.unpack('>I4', stored, 33)
        if args[i + 6] ~= '1' then former = string.sub(stored, 37, 36 + former_length) end
        local links_length = struct.unpack('>I4', stored, 37 + former_length)
        local stored_links = string.sub(stored, 41 + former_length, 40 + former_length + links_length)
        if links_length > 0 and stored_links ~= links then
          local blob = struct.pack('>I4', links_length) .. stored_links
          if not string.find(former, blob, 1, true) then former = former .. blob end
        end
      end
      local parts = { version, struct.pack('>I4', #former), former, struct.pack('>I4', #links), links, body }
      redis.call('HSET', keys[1], key, table.concat(parts))
      if args[i + 7] == '' then
        redis.call('ZREM', keys[2], args[i])
      else
        redis.call('ZADD', keys[2], args[i + 7], args[i])
      end
      answer = former
    end
    out[(i + 7) / 8] = answer
  end
  return out
end

-- KEYS: one set of row keys per partition. ARGV: per key the number of rows, then their keys.
local function inhabit(keys, args)
  local position = 1
  for _, name in ipairs(keys) do
    local last = position + tonumber(args[position])
    for member = position + 1, last do redis.call('SADD', name, args[member]) end
    position = last + 1
  end
  return 1
end

-- KEYS: one set of deletions per partition. Answer: their members.
local function stones(keys)
  local out = {}
  for i, name in ipairs(keys) do out[i] = redis.call('SMEMBERS', name) end
  return out
end

-- KEYS: deletions of a partition, its row keys. ARGV: a deletion. Answer: the row keys.
local function bury(keys, args)
  redis.call('SADD', keys[1], args[1])
  return redis.call('SMEMBERS', keys[2])
end

-- KEYS: expiry index of a bucket. ARGV: time, limit. Answer: what is due.
local function due(keys, args)
  return redis.call('ZRANGEBYSCORE', keys[1], '-inf', args[1], 'LIMIT', 0, args[2])
end

-- KEYS: expiry index of a bucket. ARGV: (member, the time that stands there, the time that shall or nothing) each.
local function looked(keys, args)
  for i = 1, #args, 3 do
    local score = redis.call('ZSCORE', keys[1], args[i])
    if score and tonumber(score) == tonumber(args[i + 1]) then
      if args[i + 2] == '' then
        redis.call('ZREM', keys[1], args[i])
      else
        redis.call('ZADD', keys[1], args[i + 2], args[i])
      end
    end
  end
  return 1
end

-- KEYS: rows hash, floor. ARGV: keys of rows. Answer: the rows, then the floor.
local function rows(keys, args)
  local out = {}
  for first = 1, #args, 1000 do
    local last = math.min(first + 999, #args)
    local found = redis.call('HMGET', keys[1], unpack(args, first, last))
    for i = 1, last - first + 1 do out[first + i - 1] = found[i] end
  end
  out[#args + 1] = redis.call('GET', keys[2])
  return out
end

-- Truncate. KEYS: rows hash, floor. ARGV: version. Raises the floor; the rows are deleted one by one by the caller.
local function floor(keys, args)
  local known = redis.call('GET', keys[2])
  if not known or known < args[1] then redis.call('SET', keys[2], args[1]) end
  return 1
end

local function unpack_contribution(blob)
  if #blob <= 1 then return nil end
  return cmsgpack.unpack(blob)
end

local function merge(contribution, sign, entries, counters, distincts)
  for number, entry in ipairs(contribution[1]) do
    if entry ~= '' then
      local index = entries[number]
      if not index then
        index = {}
        entries[number] = index
      end
      index[entry] = (index[entry] or 0) + sign
    end
  end
  local list = contribution[2]
  for i = 1, #list, 2 do counters[list[i]] = (counters[list[i]] or 0) + sign * list[i + 1] end
  list = contribution[3]
  for i = 1, #list, 2 do
    local known = distincts[list[i]]
    if known then known[1] = known[1] + sign else distincts[list[i]] = { sign, list[i + 1] } end
  end
end

local function count(key, field, amount)
  if amount ~= 0 then
    local total = redis.call('HINCRBY', key, field, string.format('%.0f', amount))
    if total == 0 then redis.call('HDEL', key, field) end
  end
end

local function write_place(base, args, first, last)
  local names = {}
  for i = first, last, 3 do names[#names + 1] = args[i] end
  local found = redis.call('HMGET', base, unpack(names))
  local current, out = {}, {}
  local entries, counters, distincts = {}, {}, {}
  for i, name in ipairs(names) do if current[name] == nil then current[name] = found[i] end end
  for i = first, last, 3 do
    local child, version, blob = args[i], args[i + 1], args[i + 2]
    local stored = current[child]
    local known = stored and string.sub(stored, 33) or ''
    if not stored or version >= string.sub(stored, 1, 32) then
      if known ~= blob then
        local old, new = unpack_contribution(known), unpack_contribution(blob)
        if old then merge(old, -1, entries, counters, distincts) end
        if new then merge(new, 1, entries, counters, distincts) end
      end
      current[child] = version .. blob
      out[#out + 1] = child
      out[#out + 1] = current[child]
    end
  end
  if #out == 0 then return end
  redis.call('HSET', base, unpack(out))
  for number, index in pairs(entries) do
    for entry, sign in pairs(index) do
      if sign > 0 then
        redis.call('ZADD', base .. ':' .. number, 0, entry)
      elseif sign < 0 then
        redis.call('ZREM', base .. ':' .. number, entry)
      end
    end
  end
  for value, change in pairs(distincts) do
    if change[1] ~= 0 then
      local after = redis.call('HINCRBY', base .. ':d', value, change[1])
      if after == 0 then redis.call('HDEL', base .. ':d', value) end
      local before = after - change[1]
      if before == 0 then
        counters[change[2]] = (counters[change[2]] or 0) + 1
      elseif after == 0 then
        counters[change[2]] = (counters[change[2]] or 0) - 1
      end
    end
  end
  for field, amount in pairs(counters) do count(base .. ':t', field, amount) end
end

-- Relations. KEYS: one per parent value. ARGV: per key the number of children, then (child, version, contribution) each;
-- a contribution is empty (taken out), '+' (plain member) or msgpack of entries, counters and distinct values.
local function relate(keys, args)
  local position = 1
  for _, base in ipairs(keys) do
    local last = position + tonumber(args[position]) * 3
    for first = position + 1, last, 3000 do
      write_place(base, args, first, math.min(first + 2999, last))
    end
    position = last + 1
  end
  return 1
end

-- Lists and totals. KEYS: one per parent value. ARGV: (limit, tops) per key. Answer per key: entries, or
-- {counters as flat list, group, first entries…}.
local function view(keys, args)
  local out = {}
  for i, base in ipairs(keys) do
    local limit, tops = tonumber(args[2 * i - 1]), tonumber(args[2 * i])
    if limit > 0 then
      out[i] = redis.call('ZRANGE', base .. ':1', 0, limit - 1)
    else
      local counters = redis.call('HGETALL', base .. ':t')
      local groups, seen = {}, {}
      if tops > 0 then
        for c = 1, #counters, 2 do
          local group = string.sub(counters[c], 1, -4)
          if not seen[group] then
            seen[group] = true
            groups[#groups + 1] = group
            for number = 1, tops do
              local low = group == '' and '-' or '[' .. group
              local high = group == '' and '+' or '(' .. string.sub(group, 1, -2) .. string.char(string.byte(group, -1) + 1)
              groups[#groups + 1] = redis.call('ZRANGEBYLEX', base .. ':' .. number, low, high, 'LIMIT', 0, 1)[1] or ''
            end
          end
        end
      end
      out[i] = { counters, groups }
    end
  end
  return out
end

-- KEYS: one per parent value. ARGV: limit. Answer per key: false above the limit, else the children.
local function members(keys, args)
  local limit, out = tonumber(args[1]), {}
  for i, base in ipairs(keys) do
    if redis.call('HLEN', base) > limit then
      out[i] = false
    else
      local flat, children = redis.call('HGETALL', base), {}
      for c = 1, #flat, 2 do
        if #flat[c + 1] > 32 then children[#children + 1] = flat[c] end
      end
      out[i] = children
    end
  end
  return out
end

-- KEYS: counters hash of a bucket. ARGV: unit keys, each once. A counter is never below the time, in microseconds:
-- what Kafka holds of builds before a Redis lost its memory stays older than the builds after it.
local function dirty(keys, args)
  local time, out = redis.call('TIME'), {}
  local now = time[1] * 1000000 + time[2]
  for first = 1, #args, 1000 do
    local last = math.min(first + 999, #args)
    local found, written = redis.call('HMGET', keys[1], unpack(args, first, last)), {}
    for i = first, last do
      out[i] = math.max((tonumber(found[i - first + 1]) or 0) + 1, now)
      written[#written + 1] = args[i]
      written[#written + 1] = out[i]
    end
    redis.call('HSET', keys[1], unpack(written))
  end
  return out
end

-- What a former value of a bundle is called: `b:` before its bucket becomes `h:`, and its counter stands at the end.
local function former_name(key, counter)
  local at = string.find(key, '{', 1, true)
  return string.sub(key, 1, at - 3) .. 'h:' .. string.sub(key, at) .. ':' .. counter
end

-- KEYS: bundle or fragment keys. ARGV: seconds to live (0: for ever), seconds that a deletion is remembered, seconds
-- that a former value is kept (0: not at all), values. A former value is moved, not copied. One that may end by itself
-- has its copy from the start, since nobody is there to make one at its end.
local function put(keys, args)
  local out = {}
  local kept = tonumber(args[3])
  for i, key in ipairs(keys) do
    local value = args[i + 3]
    local head = redis.call('GETRANGE', key, 0, 57)
    if head ~= '' and string.sub(head, 1, 16) > string.sub(value, 1, 16) then
      out[i] = 0
    else
      local deleted = string.sub(value, 18, 18) == '-'
      local live = deleted and args[2] or args[1]
      if kept > 0 then
        local counter = string.sub(head, 1, 16)
        if head ~= '' and string.sub(head, 18, 18) ~= '-' and counter ~= string.sub(value, 1, 16) then
          local former = former_name(key, counter)
          redis.call('RENAME', key, former)
          redis.call('EXPIRE', former, kept)
        end
        if args[1] ~= '0' and not deleted then
          redis.call('SET', former_name(key, string.sub(value, 1, 16)), value, 'EX', kept + tonumber(args[1]))
        end
      end
      if live == '0' then redis.call('SET', key, value) else redis.call('SET', key, value, 'EX', live) end
      if head == '' then
        out[i] = string.sub(value, 18, 18) == '-' and 0 or 1
      else
        out[i] = string.sub(head, 18) ~= string.sub(value, 18, 58) and 1 or 0
      end
    end
  end
  return out
end

-- A bucket's identity: the run id of this process and a token beside the marks, which a flushed memory has lost.
local function identity(key)
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  return run_id .. ':' .. (redis.call('HGET', key, '#token') or '')
end

-- KEYS: marks hash of a bucket. ARGV: the identity that took the writes, then (partition, offset) pairs.
-- Answer: the present identity; nothing is written where it is another.
local function mark(keys, args)
  local present = identity(keys[1])
  if args[1] == present then
    for i = 2, #args, 2 do redis.call('HSET', keys[1], args[i], args[i + 1]) end
  end
  return present
end

-- KEYS: marks hash of a bucket. ARGV: a new token, in case there is none, then partitions. Answer: identity, offsets.
local function marks(keys, args)
  redis.call('HSETNX', keys[1], '#token', args[1])
  if #args == 1 then return { identity(keys[1]), {} } end
  return { identity(keys[1]), redis.call('HMGET', keys[1], unpack(args, 2)) }
end

-- KEYS: marks hash of a bucket, applied positions in it. ARGV: the identity that took the writes, then (partition,
-- position) pairs. Answer: the present identity; nothing is written where it is another.
local function tell(keys, args)
  local present = identity(keys[1])
  if args[1] == present then redis.call('HSET', keys[2], unpack(args, 2)) end
  return present
end

-- Bundles with their fragments, for a single node: the fragments' keys are found here. KEYS: bundle keys.
-- ARGV: prefix of fragment keys, number of buckets. Answer per key: the bundle, then fragments in order of reference.
local function fetch(keys, args)
  local out = {}
  for i, key in ipairs(keys) do
    local value = redis.call('GET', key)
    local row = { value }
    if value and string.sub(value, 18, 18) ~= '-' then
      local ending = string.find(value, '\n', 18, true)
      local meta = cjson.decode(string.sub(value, 18, ending - 1))
      for number, reference in ipairs(meta.keys or {}) do row[number + 1] = redis.call('GET', args[1] .. reference) end
    end
    out[i] = row
  end
  return out
end

-- Embedding spaces of a version: one hash. Per space `r:` its record as registered, `s:` its state, `c:` when that
-- changed, `e:` evidence; `serving` names the one that answers searches.
local function move_spaces(key, from, to, now)
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, 2) == 's:' and redis.call('HGET', key, field) == from then
      redis.call('HSET', key, field, to, 'c:' .. string.sub(field, 3), now)
    end
  end
end

-- KEYS: spaces hash. ARGV: space, record, time. A version has one candidate: another is retired. Answer: 1 where it is new.
local function space_register(keys, args)
  local state = redis.call('HGET', keys[1], 's:' .. args[1])
  if state and state ~= 'retired' then return 0 end
  move_spaces(keys[1], 'candidate', 'retired', args[3])
  redis.call('HSET', keys[1], 'r:' .. args[1], args[2], 's:' .. args[1], 'candidate', 'c:' .. args[1], args[3])
  redis.call('HDEL', keys[1], 'e:' .. args[1])
  return 1
end

-- KEYS: spaces hash. ARGV: space, the one that serves now or nothing, evidence, time. Answer: 1 where it serves now.
local function space_promote(keys, args)
  local state, serving = redis.call('HGET', keys[1], 's:' .. args[1]), redis.call('HGET', keys[1], 'serving') or ''
  if not state or state == 'retired' or serving ~= args[2] or serving == args[1] then return 0 end
  move_spaces(keys[1], 'previous', 'retired', args[4])
  move_spaces(keys[1], 'serving', 'previous', args[4])
  redis.call('HSET', keys[1], 's:' .. args[1], 'serving', 'c:' .. args[1], args[4], 'e:' .. args[1], args[3])
  redis.call('HSET', keys[1], 'serving', args[1])
  return 1
end

-- KEYS: spaces hash. ARGV: space, evidence.
local function space_note(keys, args)
  if redis.call('HEXISTS', keys[1], 's:' .. args[1]) == 0 then return 0 end
  redis.call('HSET', keys[1], 'e:' .. args[1], args[2])
  return 1
end

-- KEYS: spaces hash. ARGV: space, time. Answer: 0 for the one that serves and for one that is not there.
local function space_retire(keys, args)
  local state = redis.call('HGET', keys[1], 's:' .. args[1])
  if not state or state == 'serving' then return 0 end
  if state ~= 'retired' then redis.call('HSET', keys[1], 's:' .. args[1], 'retired', 'c:' .. args[1], args[2]) end
  return 1
end

-- What is known of vectors: msgpack arrays of counter, bundle hash, text hash, vector hash, problem, filters hash, and
-- offsets of the request, the text and the vector; -1 where none is known.
-- KEYS of all that write: states hash, index of endings. ARGV: time in seconds, seconds that a deletion is remembered.
-- One without bundle, text and vector ends then; each write takes a few that are due with it.
local function write_state(keys, args, key, state)
  redis.call('HSET', keys[1], key, cmsgpack.pack(state))
  if state[2] == '' and state[3] == '' and state[4] == '' then
    redis.call('ZADD', keys[2], tonumber(args[1]) + tonumber(args[2]), key)
  else
    redis.call('ZREM', keys[2], key)
  end
end

local function end_states(keys, args)
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', keys[2], '-inf', args[1], 'LIMIT', 0, 100)) do
    redis.call('HDEL', keys[1], key)
    redis.call('ZREM', keys[2], key)
  end
end

local function state_of(keys, key)
  local stored = redis.call('HGET', keys[1], key)
  if not stored then return nil end
  local state = cmsgpack.unpack(stored)
  for i = 7, 9 do state[i] = state[i] or -1 end
  return state
end

-- ARGV: then (key, state) each. Answer per key: 0 where a higher counter or request was there, or a text of a higher
-- offset: nothing changes. What is known of the vector stays, and the problem where the text stays.
local function text_states(keys, args)
  end_states(keys, args)
  local out = {}
  for i = 3, #args, 2 do
    local stored, state = state_of(keys, args[i]), cmsgpack.unpack(args[i + 1])
    local taken = not stored or (stored[1] <= state[1] and stored[7] <= state[7] and stored[8] <= state[8])
    if taken and not stored then
      state[4], state[9] = '', -1
      write_state(keys, args, args[i], state)
    elseif taken then
      state[4], state[9] = stored[4], stored[9]
      if state[3] ~= '' and state[3] == stored[3] then state[5] = stored[5] end
      write_state(keys, args, args[i], state)
    end
    out[(i - 1) / 2] = taken and 1 or 0
  end
  return out
end

-- ARGV: then (key, text hash, problem, offset or nothing) each. Answer per key: 0 where another text is wanted. A lower
-- offset changes nothing, an equal one only tells of a problem. Why there is no text stays with a deletion.
local function vector_states(keys, args)
  end_states(keys, args)
  local out = {}
  for i = 3, #args, 4 do
    local stored, wanted = state_of(keys, args[i]), false
    if stored then
      wanted = stored[3] == args[i + 1]
      local at = tonumber(args[i + 3])
      local newer = not at or at > stored[9]
      if newer then stored[4], stored[9] = args[i + 1], at or stored[9] end
      if wanted and args[i + 1] ~= '' and (newer or (at == stored[9] and args[i + 2] ~= '')) then
        stored[5] = args[i + 2]
      end
      write_state(keys, args, args[i], stored)
    end
    out[(i + 1) / 4] = wanted and 1 or 0
  end
  return out
end

-- ARGV: then (key, text hash, problem) each. Of the problem alone, where that text is wanted.
local function problem_states(keys, args)
  local out = {}
  for i = 3, #args, 3 do
    local stored = state_of(keys, args[i])
    local wanted = stored and stored[3] == args[i + 1]
    if wanted and stored[5] ~= args[i + 2] then
      stored[5] = args[i + 2]
      write_state(keys, args, args[i], stored)
    end
    out[i / 3] = wanted and 1 or 0
  end
  return out
end

-- KEYS: states hash. ARGV: keys. Answer: the states.
local function states(keys, args)
  local out = {}
  for first = 1, #args, 1000 do
    local last = math.min(first + 999, #args)
    local found = redis.call('HMGET', keys[1], unpack(args, first, last))
    for i = 1, last - first + 1 do out[first + i - 1] = found[i] end
  end
  return out
end

-- KEYS: states hash, index of endings. Answer: how many there were.
local function forget_states(keys)
  local count = redis.call('HLEN', keys[1])
  redis.call('UNLINK', keys[1], keys[2])
  return count
end

redis.register_function('ctx_apply_@', apply)
redis.register_function{ function_name = 'ctx_rows_@', callback = rows, flags = { 'no-writes' } }
redis.register_function{
  function_name = 'ctx_value_@',
  callback = function(keys) return redis.call('GET', keys[1]) end,
  flags = { 'no-writes' },
}
redis.register_function('ctx_floor_@', floor)
redis.register_function('ctx_cells_@', cells)
redis.register_function('ctx_inhabit_@', inhabit)
redis.register_function{ function_name = 'ctx_stones_@', callback = stones, flags = { 'no-writes' } }
redis.register_function('ctx_bury_@', bury)
redis.register_function('ctx_looked_@', looked)
redis.register_function{ function_name = 'ctx_due_@', callback = due, flags = { 'no-writes' } }
redis.register_function('ctx_relate_@', relate)
redis.register_function{ function_name = 'ctx_view_@', callback = view, flags = { 'no-writes' } }
redis.register_function{ function_name = 'ctx_members_@', callback = members, flags = { 'no-writes' } }
redis.register_function('ctx_dirty_@', dirty)
redis.register_function('ctx_put_@', put)
redis.register_function('ctx_mark_@', mark)
redis.register_function('ctx_tell_@', tell)
redis.register_function('ctx_marks_@', marks)
redis.register_function{ function_name = 'ctx_fetch_@', callback = fetch, flags = { 'no-writes', 'allow-cross-slot-keys' } }
redis.register_function('ctx_space_register_@', space_register)
redis.register_function('ctx_space_promote_@', space_promote)
redis.register_function('ctx_space_note_@', space_note)
redis.register_function('ctx_space_retire_@', space_retire)
redis.register_function('ctx_text_states_@', text_states)
redis.register_function('ctx_vector_states_@', vector_states)
redis.register_function('ctx_problem_states_@', problem_states)
redis.register_function{ function_name = 'ctx_states_@', callback = states, flags = { 'no-writes' } }
redis.register_function('ctx_forget_states_@', forget_states)
