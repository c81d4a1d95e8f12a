/* Permutes tokens into the order of their experts, and back. Built and called by rows.py. */

#include "arithmetic.h"

/* The permuted order of tokens, one expert after the other: token_of[place] is the token at each of
 * `rows` places, entry_of[place] its flat index into `map`, [tokens, experts]. Returns the number of
 * set entries of `map`; if that is not `rows`, nothing is written. */
int64_t places(const uint8_t *restrict map, int64_t *restrict token_of,
               int64_t *restrict entry_of, int64_t tokens, int64_t experts, int64_t rows) {
    int64_t next[experts];
    memset(next, 0, sizeof next);
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t expert = 0; expert < experts; expert++)
            next[expert] += map[token * experts + expert];
    int64_t total = 0;
    for (int64_t expert = 0; expert < experts; expert++) {
        int64_t here = next[expert];
        next[expert] = total;
        total += here;
    }
    if (total != rows)
        return total;
    for (int64_t entry = 0; entry < tokens * experts; entry++) {
        if (!map[entry])
            continue;
        int64_t place = next[entry % experts]++;
        token_of[place] = entry / experts;
        entry_of[place] = entry;
    }
    return total;
}

/* to[place] = from[token_of[place]], for rows of `bytes` bytes. */
void gather(const char *restrict from, const int64_t *restrict token_of, char *restrict to,
            int64_t rows, int64_t bytes) {
#pragma omp parallel for
    for (int64_t place = 0; place < rows; place++)
        memcpy(to + place * bytes, from + token_of[place] * bytes, bytes);
}

/* The places of each token, ascending: those of token t are place_of[first[t]:first[t + 1]]. `first`
 * has room for tokens + 2 numbers. */
void invert(const int64_t *restrict token_of, int64_t *restrict first, int64_t *restrict place_of,
            int64_t rows, int64_t tokens) {
    memset(first, 0, (tokens + 2) * sizeof *first);
    for (int64_t place = 0; place < rows; place++)
        first[token_of[place] + 2]++;
    for (int64_t token = 0; token < tokens; token++)
        first[token + 2] += first[token + 1];
    /* first[t + 1] is where t's places begin, and advances to where they end. */
    for (int64_t place = 0; place < rows; place++)
        place_of[first[token_of[place] + 1]++] = place;
}

#define BLOCK 256

/* to[t] = the sum, in fp32, of from[place] over the places of token t. */
#define SUM(NAME, TYPE, READ, WRITE)                                                              \
    void NAME(const TYPE *restrict from, const int64_t *restrict first,                           \
              const int64_t *restrict place_of, TYPE *restrict to, int64_t tokens,                \
              int64_t width) {                                                                    \
        _Pragma("omp parallel for") for (int64_t token = 0; token < tokens; token++) {            \
            for (int64_t start = 0; start < width; start += BLOCK) {                              \
                int64_t size = width - start < BLOCK ? width - start : BLOCK;                     \
                float sums[BLOCK] = {0};                                                          \
                for (int64_t j = first[token]; j < first[token + 1]; j++) {                       \
                    const TYPE *restrict row = from + place_of[j] * width + start;                \
                    for (int64_t i = 0; i < size; i++)                                            \
                        sums[i] += READ(row[i]);                                                  \
                }                                                                                 \
                for (int64_t i = 0; i < size; i++)                                                \
                    to[token * width + start + i] = WRITE(sums[i]);                               \
            }                                                                                     \
        }                                                                                         \
    }

SUM(sum_bf16, bf16, widened, rounded)
SUM(sum_fp32, float, , )
