// Words in which values travel between the kernels of ranks: 16 bytes that arrive together, with
// the flag of the sum that they are part of. So no value waits for another and no memory barrier is
// needed: who finds the flag has the values. Device code alone.
#ifndef PENSTOCK_KERNELS_CUDA_COMM_WORDS_CUH
#define PENSTOCK_KERNELS_CUDA_COMM_WORDS_CUH

#include <cuda_runtime.h>

#include <stdint.h>

enum {
    WORD_LOOKS = 512, // for words, then a look whether all has ended
    COARSE_NAN = -128, // in place of a value that is no number, or 2^30 and more
    COARSE_LEAST = -40, // the step of code 4 k is 2^(k + this)
};

// --- words in memory that others read

static __device__ __forceinline__ void word_write(uint4 *to, uint4 w)
{
    uint64_t low = (uint64_t) w.y << 32 | w.x, high = (uint64_t) w.w << 32 | w.z;
    asm volatile("{\n\t.reg .b128 w;\n\tmov.b128 w, {%1, %2};\n\t"
                 "st.relaxed.sys.global.b128 [%0], w;\n\t}" ::"l"(to), "l"(low), "l"(high)
                 : "memory");
}

static __device__ __forceinline__ uint4 word_read(const uint4 *from)
{
    uint64_t low, high;
    asm volatile("{\n\t.reg .b128 w;\n\tld.relaxed.sys.global.b128 w, [%2];\n\t"
                 "mov.b128 {%0, %1}, w;\n\t}"
                 : "=l"(low), "=l"(high)
                 : "l"(from)
                 : "memory");
    return make_uint4((uint32_t) low, (uint32_t) (low >> 32), (uint32_t) high,
                      (uint32_t) (high >> 32));
}

// Word `at` of ranks [first, first + N), of which those from `tp` on and this rank's own are none.
// All are asked for at once, and again until they have the flag. False once all has ended.
template <int N, typename P>
static __device__ __forceinline__ bool words_wait(const P &from, int tp, int rank,
                                                  const volatile uint32_t *ended, int first,
                                                  size_t at, uint32_t flag, uint4 w[N])
{
    uint32_t missing = 0;
    for (int i = 0; i < N; i++) {
        if (first + i < tp && first + i != rank) missing |= 1u << i;
    }
    for (uint32_t looks = 1; missing != 0; looks++) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (missing >> i & 1) w[i] = word_read(from[first + i] + at);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (missing >> i & 1 && w[i].w == flag) missing &= ~(1u << i);
        }
        if (looks % WORD_LOOKS == 0 && *ended != 0) return false;
    }
    return true;
}

// --- values in a word: a form has `VALUES`, `pack` and `unpack`; what `pack` was given is as
// others will unpack it

struct word_exact {
    enum { VALUES = 3 };

    static __device__ __forceinline__ uint4 pack(float v[VALUES], uint32_t flag)
    {
        return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                          flag);
    }

    static __device__ __forceinline__ void unpack(const uint4 &w, float v[VALUES])
    {
        v[0] = __uint_as_float(w.x);
        v[1] = __uint_as_float(w.y);
        v[2] = __uint_as_float(w.z);
    }
};

// Eleven values of 8 bits, multiples of a step that is a quarter of an octave from the next. Its
// code is the twelfth byte; 0: all are zeros. A value that is no finite number, or 2^30 and more,
// arrives as NaN, and the step is that of the others.
struct word_coarse {
    enum { VALUES = 11 };

    // 2^(code / 4), whole octaves with `sign` -1 downwards.
    static __device__ __forceinline__ float quarters(int code, int sign)
    {
        const float up[4] = {1.0f, 1.1892071f, 1.4142135f, 1.6817929f};
        const float down[4] = {1.0f, 0.8408964f, 0.7071068f, 0.5946036f};
        int part = code & 3, octaves = sign * ((code >> 2) + COARSE_LEAST);
        float f = part == 0 ? up[0] : part == 1 ? up[1] : part == 2 ? up[2] : up[3];
        float g = part == 0 ? down[0] : part == 1 ? down[1] : part == 2 ? down[2] : down[3];
        return (sign > 0 ? f : g) * __uint_as_float((uint32_t) (octaves + 127) << 23);
    }

    static __device__ __forceinline__ bool is_value(float v)
    {
        return (__float_as_uint(v) & 0x7fffffffu) < 0x4e800000u;
    }

    // The least step of which 127 reach `most`, the bits of a float below 2^30.
    static __device__ __forceinline__ int code_of(uint32_t most)
    {
        float steps = __uint_as_float(most) * (1.0f / 127.0f);
        if (steps == 0) return 0;
        uint32_t bits = __float_as_uint(steps), part = bits & 0x7fffffu;
        int code = 4 * ((int) (bits >> 23) - 127 - COARSE_LEAST);
        code += (part > 0) + (part > 0x1837f0u) + (part > 0x3504f3u) + (part > 0x5744fcu);
        return code < 1 ? 1 : code;
    }

    static __device__ __forceinline__ uint4 pack(float v[VALUES], uint32_t flag)
    {
        uint32_t most = 0, word[3] = {};
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            if (is_value(v[i])) most = max(most, __float_as_uint(v[i]) & 0x7fffffffu);
        }
        int code = code_of(most);
        float per = quarters(code, -1);
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            int q = min(max(__float2int_rn(v[i] * per), -127), 127);
            if (!is_value(v[i])) q = COARSE_NAN;
            word[i / 4] |= ((uint32_t) q & 0xffu) << 8 * (i % 4);
        }
        word[2] |= (uint32_t) code << 24;
        uint4 w = make_uint4(word[0], word[1], word[2], flag);
        unpack(w, v);
        return w;
    }

    static __device__ __forceinline__ void unpack(const uint4 &w, float v[VALUES])
    {
        uint32_t word[3] = {w.x, w.y, w.z};
        int code = (int) (w.z >> 24);
        float step = quarters(code, 1);
#pragma unroll
        for (int i = 0; i < VALUES; i++) {
            int q = (int) (word[i / 4] << (24 - 8 * (i % 4))) >> 24;
            v[i] = q == COARSE_NAN ? __uint_as_float(0x7fc00000u) : (float) q * step;
        }
    }
};

#endif
