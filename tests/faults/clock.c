/* A wrong clock: whoever asks what time it is hears a time CLOCK_SHIFT seconds later than it is.

   cc -shared -fPIC -O1 -o clock.so clock.c -ldl        CLOCK_SHIFT=-172800 LD_PRELOAD=clock.so neuronledger status

   Only the time of day is wrong. How long something takes is measured by another clock, which no one sets, and so is right
   here. (libfaketime 0.9.10 moves the deadlines of that other clock too, even where it is told to leave it alone: under it
   Python's sleep fails with a clock that is behind, and lasts as long as a clock is ahead.) */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static time_t shift(void) {
    const char *seconds = getenv("CLOCK_SHIFT");
    return seconds ? (time_t)atoll(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &found);
    if (!result && now) *now = (struct timeval){.tv_sec = found.tv_sec, .tv_usec = found.tv_nsec / 1000};
    return result;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
