/* Lets time run faster in a process: `FASTER=RATE NANOSECONDS` says how fast, and since when
 * (CLOCK_MONOTONIC), so that all processes of one run agree. Every clock shows more time than
 * passed, and every wait is as much shorter. So the program that is measured is the program as it
 * is, with all its seconds. Loaded with LD_PRELOAD; only what Rust's std and tokio call is here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static int (*real_time)(clockid_t, struct timespec *);
static double rate = 1;
static long long since;

__attribute__((constructor)) static void begin(void) {
    const char *said = getenv("FASTER");
    real_time = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (said && sscanf(said, "%lf %lld", &rate, &since) != 2) rate = 1;
    prctl(PR_SET_TIMERSLACK, 1000UL);
}

static long long nanos(const struct timespec *t) { return t->tv_sec * SECOND + t->tv_nsec; }

static struct timespec spec(long long nanos) {
    struct timespec t = {nanos / SECOND, nanos % SECOND};
    return t;
}

int clock_gettime(clockid_t id, struct timespec *out) {
    struct timespec now;
    int failed = real_time(id, out);
    if (failed || id == CLOCK_PROCESS_CPUTIME_ID || id == CLOCK_THREAD_CPUTIME_ID) return failed;
    real_time(CLOCK_MONOTONIC, &now);
    *out = spec(nanos(out) + (long long)((double)(nanos(&now) - since) * (rate - 1)));
    return 0;
}

static int wait_for(int fd, struct epoll_event *events, int most, int ms, const sigset_t *mask) {
    struct timespec limit = spec((long long)((double)ms * 1e6 / rate));
    return (int)syscall(SYS_epoll_pwait2, fd, events, most, ms < 0 ? NULL : &limit, mask,
                        (size_t)(_NSIG / 8));
}

int epoll_wait(int fd, struct epoll_event *events, int most, int ms) {
    return wait_for(fd, events, most, ms, NULL);
}

int epoll_pwait(int fd, struct epoll_event *events, int most, int ms, const sigset_t *mask) {
    return wait_for(fd, events, most, ms, mask);
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *want, struct timespec *left) {
    long long span = nanos(want);
    struct timespec now;
    if (flags & TIMER_ABSTIME) {
        clock_gettime(id, &now);
        span -= nanos(&now);
    }
    struct timespec real = spec(span > 0 ? (long long)((double)span / rate) : 0);
    (void)left;
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &real, NULL) ? errno : 0;
}

int nanosleep(const struct timespec *want, struct timespec *left) {
    int failed = clock_nanosleep(CLOCK_MONOTONIC, 0, want, left);
    if (failed) errno = failed;
    return failed ? -1 : 0;
}
