/* A job whose first act is to note the time: stamp FILE. Written aside and renamed, so that FILE is whole once it is there. */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
    struct timespec now;
    char text[64], aside[4096];
    clock_gettime(CLOCK_REALTIME, &now);
    if (count != 2)
        return 2;
    int length = snprintf(text, sizeof text, "%ld.%09ld", (long)now.tv_sec, now.tv_nsec);
    snprintf(aside, sizeof aside, "%s.new", words[1]);
    int file = open(aside, O_CREAT | O_WRONLY | O_TRUNC, 0644);
    if (file < 0 || write(file, text, length) != length || close(file))
        return 1;
    return rename(aside, words[1]) ? 1 : 0;
}
