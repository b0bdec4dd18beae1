/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which bucket of a histogram a number belongs to. Pure, and compiled natively
 * too, like policy.h.
 */
#ifndef PVSCHED_HISTOGRAM_H
#define PVSCHED_HISTOGRAM_H

/* How many bits @value has: the smallest i with value < 2^i. Without a loop. */
static inline unsigned int pv_bits(unsigned int value)
{
	unsigned int i = 0;

	if (value >= 1 << 16) {
		value >>= 16;
		i += 16;
	}
	if (value >= 1 << 8) {
		value >>= 8;
		i += 8;
	}
	if (value >= 1 << 4) {
		value >>= 4;
		i += 4;
	}
	if (value >= 1 << 2) {
		value >>= 2;
		i += 2;
	}
	return i + (value >= 2 ? 2 : value);
}

/*
 * Buckets that are an eighth of their least value wide, or less, as HdrHistogram
 * has them (Gil Tene, hdrhistogram.org): eight to each power of two. Numbers of
 * more than PV_FINE_VALUE_BITS bits are in the last one.
 */
#define PV_FINE_BITS		3
#define PV_FINE_VALUE_BITS	20
#define PV_FINE_BUCKETS		((PV_FINE_VALUE_BITS - PV_FINE_BITS + 1) << PV_FINE_BITS)

static inline unsigned int pv_fine_bucket(unsigned long long value)
{
	unsigned int bits;

	if (value >> PV_FINE_VALUE_BITS)
		return PV_FINE_BUCKETS - 1;
	bits = pv_bits(value);
	if (bits <= PV_FINE_BITS)
		return value;
	return (bits - PV_FINE_BITS) << PV_FINE_BITS |
	       (value >> (bits - PV_FINE_BITS - 1) & ((1 << PV_FINE_BITS) - 1));
}

/* The least number in bucket @i. */
static inline unsigned long long pv_fine_least(unsigned int i)
{
	unsigned int power = i >> PV_FINE_BITS;

	if (!power || i >= PV_FINE_BUCKETS)
		return i < PV_FINE_BUCKETS ? i : 1ULL << PV_FINE_VALUE_BITS;
	return (unsigned long long)((1 << PV_FINE_BITS) | (i & ((1 << PV_FINE_BITS) - 1))) << (power - 1);
}

#endif /* PVSCHED_HISTOGRAM_H */
